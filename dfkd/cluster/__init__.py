"""The library on Ray: a bounded pool of synthesis actors, and distillation through Ray Train."""
