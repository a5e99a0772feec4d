"""One single-process function per arrow of docs/architecture.md. Torch yes, Ray no."""
