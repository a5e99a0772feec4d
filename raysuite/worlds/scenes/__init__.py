"""Scenes: coloured shapes on a light ground, prompts that describe them, and an exact reader of pictures.

Where to look: `grammar` (prompts and their meaning), `render` (meaning -> picture), `verify`
(picture -> graded score and strict pass), `bundled` (what the two bundled models are), `pretrain` (how they
were made), `model/` (`scenes`, a `StableDiffusionPipeline` that predicts noise, and its card) and `model_flow/`
(`scenes-flow`, a `StableDiffusion3Pipeline` that predicts a velocity, and its card).
"""
