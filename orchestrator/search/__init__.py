"""Search TT ranks and shapes with Ray Tune and Optuna."""
