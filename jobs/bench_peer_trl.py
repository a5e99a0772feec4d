"""The peer's half of jobs/bench_peer.py, run by the interpreter of its own environment: TRL's DDPOTrainer.

It reads one JSON object from standard input (what to train) and then, for every further line, trains one epoch or saves the
U-Net's weights, as the line says, and answers with a line of JSON. Of the suite it imports only the scenes world's verifier.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
import warnings
from typing import Any

import numpy as np
import safetensors.torch
import torch
from accelerate import PartialState

from raysuite.worlds.scenes.grammar import parse
from raysuite.worlds.scenes.verify import verify


def main() -> None:
    answers, sys.stdout = os.fdopen(os.dup(1), "w", buffering=1), sys.stderr
    job: dict[str, Any] = json.loads(sys.stdin.readline())
    torch.set_num_threads(job["threads"])
    warnings.filterwarnings("ignore")
    trl: Any = importlib.import_module("trl")  # not in the suite's own environment

    class Pipeline(trl.DefaultDDPOStableDiffusionPipeline):
        """Without guidance the library still passes on the negative prompt, and its call fails on a doubled batch."""

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            if kwargs["guidance_scale"] == 1:
                self.sd_pipeline._encode_prompt = lambda *a, prompt_embeds, **k: prompt_embeds
            return super().__call__(*args, **kwargs)

    rewards: list[float] = []
    prompts = iter(job["prompts"])

    def reward(images: torch.Tensor, texts: tuple[str, ...], metadata: tuple[Any, ...]) -> tuple[torch.Tensor, dict]:
        pixels = (images * 255).round().byte().permute(0, 2, 3, 1).numpy()
        scores = [verify(image, parse(text)).score for image, text in zip(pixels, texts, strict=True)]
        rewards.extend(scores)
        return torch.tensor(scores), {}

    PartialState(cpu=True)  # the trainer logs before it sets up accelerate itself
    pipeline = Pipeline(job["model"], use_lora=False)
    trainer = trl.DDPOTrainer(trl.DDPOConfig(**job["config"]), reward, lambda: (next(prompts), {}), pipeline)
    pipeline.set_progress_bar_config(disable=True)
    print(json.dumps({"predictions": predictions(pipeline, job["probe"]).tolist()}), file=answers)
    epoch = step = 0
    for line in sys.stdin:
        question = json.loads(line)
        if question["do"] == "save":
            weights = {name: tensor.contiguous() for name, tensor in pipeline.unet.state_dict().items()}
            safetensors.torch.save_file(weights, question["file"])
            print(json.dumps({}), file=answers)
            continue
        rewards.clear()
        started, worked = time.perf_counter(), time.process_time()
        step = trainer.step(epoch, step)
        taken = {"seconds": time.perf_counter() - started, "processor": time.process_time() - worked}
        epoch += 1
        print(json.dumps(taken | {"reward": float(np.mean(rewards)), "steps": step}), file=answers)


@torch.no_grad()
def predictions(pipeline: Any, prompts: list[str]) -> np.ndarray:
    """The U-Net's answers for some prompts at one latent: both sides must give the same."""
    tokenizer = pipeline.tokenizer
    length = tokenizer.model_max_length
    ids = tokenizer(prompts, return_tensors="pt", padding="max_length", truncation=True, max_length=length).input_ids
    side, channels = pipeline.unet.config.sample_size, pipeline.unet.config.in_channels
    x = np.random.default_rng(0).standard_normal((1, channels, side, side)).astype(np.float32)
    x_N = torch.from_numpy(x).expand(len(prompts), -1, -1, -1)
    output = pipeline.unet(x_N, torch.full((len(prompts),), 500), pipeline.text_encoder(ids)[0], return_dict=False)[0]
    return output.numpy()


if __name__ == "__main__":
    main()
