"""Settings: how they are declared and read, and the sections that no module owns."""
