"""What things cost, measured: each module times one part and gives figures for a record."""
