"""Experiments: what each part of the method is worth. In neither the wheel nor the app bundle."""
