"""What raysuite must be told of a pipeline class: one line each, and only where it departs from most.

All else (ids, packing, masks, the form of time, the sign of the output) is the pipeline's own code, which `driver` runs.
docs/models.md says what was verified of each class, and how.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")


@dataclass(frozen=True, kw_only=True)
class Facts:
    """How one pipeline class departs."""

    guidance: str | None = "guidance_scale"
    """The call's argument of classifier-free guidance; None where the class has none."""
    offset: float = 0.0
    """That argument's value where there is no guidance, less 1: -1 for classes that add w (conditional - unconditional)."""
    embedded: str | None = None
    """The argument of a guidance that the network is told, as distilled models are."""
    negative: str | None = ""
    """The negative prompt that guided users of the class get when they name none. None leaves the argument out."""
    joint: bool = False
    """Whether guidance goes through the network as one batch of twice the size, which then wants each row's time twice."""
    one_time: bool = False
    """Whether all rows of a call must be at the same time."""
    targets: tuple[str, ...] = ATTENTION
    """Layers that get an adapter by default; those among them that are not linear are passed over."""
    call: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of the call that differ from its defaults."""
    load: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of `from_pretrained`."""
    no_checkpointing: str | None = None
    """Why gradient checkpointing would be wrong."""


NO_CHECKER = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
PLAIN = {"use_resolution_binning": False, "clean_caption": False}
"""Pictures of the size that is asked for, from the prompt as it is."""

FACTS: Mapping[str, Facts] = {
    "StableDiffusionPipeline": Facts(joint=True, load=NO_CHECKER),
    # None: its own default, zeros in place of an encoding where the model's configuration says so
    # no watermark, which it puts on pictures where a package for that is installed
    "StableDiffusionXLPipeline": Facts(joint=True, negative=None, load={"add_watermarker": False}),
    "StableDiffusion3Pipeline": Facts(joint=True),
    "FluxPipeline": Facts(guidance="true_cfg_scale", embedded="guidance_scale"),
    "Flux2Pipeline": Facts(
        guidance=None, embedded="guidance_scale", targets=(*ATTENTION, "attn.to_out", "to_qkv_mlp_proj")
    ),
    "Flux2KleinPipeline": Facts(negative=None, targets=(*ATTENTION, "attn.to_out", "to_qkv_mlp_proj")),
    "QwenImagePipeline": Facts(guidance="true_cfg_scale", embedded="guidance_scale", negative=" "),
    "ZImagePipeline": Facts(offset=-1, call={"cfg_truncation": None}),
    "SanaPipeline": Facts(joint=True, call=PLAIN),
    "Krea2Pipeline": Facts(offset=-1, targets=(*ATTENTION, "to_gate")),
    "Lumina2Pipeline": Facts(),
    "PixArtSigmaPipeline": Facts(joint=True, call=PLAIN),
    "AuraFlowPipeline": Facts(joint=True, one_time=True),
    "CogView4Pipeline": Facts(),
    "HiDreamImagePipeline": Facts(joint=True, targets=("to_q", "to_k", "to_v", "to_out")),
    "ChromaPipeline": Facts(
        no_checkpointing="diffusers 0.42.1 drops the attention mask in checkpointed blocks of ChromaTransformer2DModel"
    ),
    "WanPipeline": Facts(call={"num_frames": 1}),
}

BY_STEP = {
    "cfg_trunc_ratio",
    "cfg_truncation",
    "denoising_end",
    "skip_guidance_layers",
    "skip_layer_guidance_scale",
    "skip_layer_guidance_start",
    "skip_layer_guidance_stop",
    "guidance_scale_2",
}
"""Arguments that mean another thing at each step of a call: driven step by step, a pipeline would not know which one it is at."""


def facts_of(pipeline: str) -> Facts:
    """What is known of a pipeline class; of one that is not listed, that it is like most."""
    return FACTS.get(pipeline, Facts())
