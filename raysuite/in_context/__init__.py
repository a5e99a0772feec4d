"""In-context generation: which picture comes next after a few texts with theirs? It measures what is read, and what is drawn."""
