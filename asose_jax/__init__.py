"""ASO-SE: differentiable architecture search with alternating stable optimization."""
