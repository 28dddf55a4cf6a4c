"""What the recipe does with a step wrong, the card's ablation, and the real shapes on a GPU."""
