"""One prediction over its scan: the slice that shows most of it, truth and prediction as outlines.

Prepared volumes of public or synthetic patients only: a picture of a real patient does not leave a hospital.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

TRUTH_COLOUR, PREDICTION_COLOUR = "#009E73", "#D55E00"  # bluish green and vermillion: apart for colour-blind readers too
WIDTH_INCHES, DPI = 6.4, 150
LEGEND_INCHES = 0.8
TALLEST = 1.25  # of the width


def render_prediction(
    path: Path,
    image: NDArray[np.float32],
    truth: NDArray[np.integer],
    prediction: NDArray[np.integer],
    title: str,
) -> None:
    """Write a PNG of one axial slice: truth solid green, prediction dashed vermillion. Arrays are (z, y, x), equal in shape."""
    if not image.shape == truth.shape == prediction.shape or image.ndim != 3:
        raise ValueError(f"image, truth and prediction differ in shape: {image.shape}, {truth.shape}, {prediction.shape}")
    z = fullest_slice(truth, prediction)
    height = WIDTH_INCHES * min(image.shape[1] / image.shape[2], TALLEST) + LEGEND_INCHES
    figure = Figure(figsize=(WIDTH_INCHES, height), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    low, high = np.percentile(image[z], (0.5, 99.5))
    axes.imshow(image[z], cmap="gray", vmin=low, vmax=max(high, low + 1e-6), interpolation="nearest")
    for label, colour, style in ((truth[z], TRUTH_COLOUR, "solid"), (prediction[z], PREDICTION_COLOUR, "dashed")):
        for value in np.unique(label[label > 0]):
            axes.contour(label == value, levels=[0.5], colors=[colour], linestyles=[style], linewidths=1.6)
    axes.set_axis_off()
    axes.set_title(title, fontsize=10)
    handles = [
        Line2D([], [], color=TRUTH_COLOUR, linestyle="solid", label="truth"),
        Line2D([], [], color=PREDICTION_COLOUR, linestyle="dashed", label="prediction"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    figure.savefig(path)


def fullest_slice(truth: NDArray[np.integer], prediction: NDArray[np.integer]) -> int:
    """The slice with most labelled voxels of truth and prediction together; the middle one where there is none."""
    labelled = (truth > 0).sum(axis=(1, 2)) + (prediction > 0).sum(axis=(1, 2))
    return int(labelled.argmax()) if labelled.any() else truth.shape[0] // 2
