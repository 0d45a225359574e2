"""Run K modules of one architecture as one stacked tensor program, traced once with torch.fx."""
