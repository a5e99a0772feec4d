"""Published preference data: where it comes from, and its pictures as latents."""
