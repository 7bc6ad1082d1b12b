"""The picture of one prediction: the right slice, both outlines, in their colours."""

import numpy as np
import pytest
from matplotlib import colors
from matplotlib import image as mpl_image

from study.picture import PREDICTION_COLOUR, TRUTH_COLOUR, fullest_slice, render_prediction


def arrays():
    image = np.full((6, 40, 50), -0.8, np.float32)
    truth, prediction = np.zeros((2, 6, 40, 50), np.uint8)
    truth[4, 10:20, 10:20] = 1
    prediction[4, 25:32, 30:40] = 1
    return image, truth, prediction


def near(pixels, colour):
    """Bounding box (top, bottom, left, right) of the pixels of one colour."""
    rows, columns = np.where(np.abs(pixels[..., :3] - colors.to_rgb(colour)).max(axis=2) < 0.1)
    return rows.min(), rows.max(), columns.min(), columns.max()


def test_outlines_lie_where_truth_and_prediction_are(tmp_path):
    image, truth, prediction = arrays()
    render_prediction(tmp_path / "p.png", image, truth, prediction, "a title")
    pixels = mpl_image.imread(tmp_path / "p.png")
    drawing = pixels[: int(0.85 * len(pixels))]  # without the legend
    green, orange = near(drawing, TRUTH_COLOUR), near(drawing, PREDICTION_COLOUR)
    assert green[1] < orange[0] + 40
    assert green[3] < orange[2]
    scale = (green[3] - green[2]) / 10  # ten voxels wide
    assert orange[3] - orange[2] == pytest.approx(10 * scale, rel=0.1)
    assert orange[1] - orange[0] == pytest.approx(7 * scale, rel=0.15)


def test_the_slice_with_most_in_it_is_chosen():
    _, truth, prediction = arrays()
    assert fullest_slice(truth, prediction) == 4
    prediction[1] = 1
    assert fullest_slice(truth, prediction) == 1
    assert fullest_slice(0 * truth, 0 * prediction) == 3


def test_nothing_labelled_still_gives_a_picture(tmp_path):
    image, truth, _ = arrays()
    render_prediction(tmp_path / "p.png", image, 0 * truth, 0 * truth, "empty")
    assert (tmp_path / "p.png").stat().st_size > 1000


def test_arrays_of_other_shapes_are_refused(tmp_path):
    image, truth, prediction = arrays()
    with pytest.raises(ValueError, match="differ in shape"):
        render_prediction(tmp_path / "p.png", image, truth[:3], prediction, "x")
