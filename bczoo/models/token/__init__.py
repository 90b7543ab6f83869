"""BC-Token and WM-Token: one sequence of picture and action tokens, one transformer (paper 2411.04434)."""
