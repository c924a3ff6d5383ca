"""The words of the page that do not depend on what came out."""

from __future__ import annotations

QUESTION = (
    "Do shortcuts make the loss around the trained weights flatter and more convex; how much of what the published "
    "figures show is due to what was moved and what was kept; and does a trained network that is cut into a plain one "
    "look like a plain one that was trained?"
)

PROTOCOL = (
    "Networks: ResNet-56 and its twin without shortcuts, trained alike by Li et al. 2018 "
    "(github.com/tomgoldstein/loss-landscape; 93.66 and 86.69 % accuracy), and that ResNet-56 with all its shortcuts "
    "deleted by a plan. Directions are random with the norms of the network's own filters. Treatments: parameters of "
    "one dimension (biases, scales and shifts of norms) stay still (published), move, or are copied into the "
    "direction; running statistics of batch norms are kept (published) or estimated anew at each point from the "
    "images of the surface. Grids are by the published treatment; every treatment is measured on lines in several "
    "directions, the same ones in each treatment. Beside them ResNet-20 and the same network trained from the same "
    "weights through the plan that deletes its shortcuts (`pathlens train --without-skips`), 3 seeds. At `--scale "
    "cpu`: the first 500 training images of CIFAR-10 as JPEG files, 11 x 11 points, 5 lines of 9 points, the "
    "curvature of 64 images, and trainings on 10,000 images at 16x16 (the middle of 18x18), a tenth of them held out, "
    "for 12 epochs. At `--scale paper`: all training images, 51 x 51 points, 10 lines of 51, the recipe of `pathlens "
    "train` for 200 epochs. Differences from the paper: it uses all training images, and one draw of directions."
)

SECTIONS = {
    "surfaces": (
        "Two random directions, filter-normalised; parameters of one dimension and running statistics stay, as in the "
        "published script. All three on one logarithmic scale, which ends at 10 nats."
    ),
    "treatments": (
        "The published script leaves parameters of one dimension out of the directions and keeps running statistics "
        "while the weights move. Neither is the only choice: here each is changed, in the same directions."
    ),
    "curvature": (
        "At the weights themselves, with respect to the parameters that move: ends of the Hessian's spectrum by "
        "Lanczos, and its trace by Hutchinson's estimator."
    ),
    "own": (
        "ResNet-20 with its shortcuts and the same network trained without them, from the same initial weights. At the "
        "scale of a CPU both are far from fully trained."
    ),
}

DISCUSSION = (
    "A surface shows two of some 850,000 directions. At the scale of a CPU a line has 9 points, so that a basin that "
    "is narrower than a quarter of its length to either side is one point wide, however narrow it is. That a random "
    "line is convex says nothing of directions in which "
    "training moves. The two networks that others trained are one training each: what is said of them is said of "
    "these networks. The plain one errs more on its training images as well, so that its minimum is also a worse one. "
    "Basin and curvature depend on the scale of weights, which filter normalisation takes out of directions alone. "
    "Re-estimated statistics are those of the images that are shown, not of all training images."
)
