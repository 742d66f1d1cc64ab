"""Interaction logs: download, readers, cleaning, splits and partition into clients."""
