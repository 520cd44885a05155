"""The config of a run: its fields, presets and checks."""
