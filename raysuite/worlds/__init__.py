"""Small worlds that ship with the package, so that every method runs offline against a known truth."""
