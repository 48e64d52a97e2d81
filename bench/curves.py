"""What the benches that draw share: one style, and SVGs whose bytes depend on the numbers alone."""


def plotting():
    """Matplotlib's pyplot. Call it before the measurements: it may be missing."""
    import matplotlib
    matplotlib.use("svg")
    import matplotlib.pyplot as plot

    matplotlib.rcParams.update({"svg.hashsalt": "temper", "font.size": 9})
    return plot


def tidy(axis):
    axis.minorticks_off()
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)


def save(figure, path):
    figure.savefig(path, metadata={"Date": None})
