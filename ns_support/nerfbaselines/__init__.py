"""Both methods for NeRFBaselines (`spec.py` registers them); nothing here is imported unless NeRFBaselines is used."""
