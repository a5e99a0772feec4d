"""Writers: language models that rewrite what a user typed, so that the image model draws what was meant.

Where to look: `model` (a writer: what it writes, and how probable that is), `bundled` (the small one that ships with the package,
and how it was made), `candidates` (rewrites of a prompt, and which of them are preferred), `draw` (pictures of them), `pairs` and
`evaluation` (sets of preferences and comparisons, on disk), `losses` (what is trained, and limits that decide whether it can
work), `train` and `grpo` (TRL's trainers), `rewriting` (a run's prompts).
"""
