"""Scenes: coloured shapes on a light ground, prompts that describe them, and an exact reader of pictures.

Where to look: `grammar` (prompts and their meaning), `render` (meaning -> picture), `verify`
(picture -> graded score and strict pass), `pretrain` (how the bundled model was made), `model/` (the
bundled `StableDiffusionPipeline` directory and its card).
"""
