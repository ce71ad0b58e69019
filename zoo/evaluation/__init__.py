"""How robust a model is: protocols, measurements, and the statistics behind them."""
