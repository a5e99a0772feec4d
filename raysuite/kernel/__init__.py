"""Pure maths on tensors: no processes, files, model families or hidden randomness."""
