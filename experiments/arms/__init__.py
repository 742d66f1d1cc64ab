"""Arms of the ablation that need more than changed settings, and how they are run."""
