"""How much depth training uses, and whether width does better."""
