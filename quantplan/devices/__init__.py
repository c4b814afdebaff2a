"""Where plans run: targets, streams and the devices behind them."""
