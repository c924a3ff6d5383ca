"""The words of the page that do not depend on what came out."""

from __future__ import annotations

QUESTION = (
    "Which ways to add up a residual block, and to start, keep activations and gradients in bounds without "
    "normalisation; do they train; and what do they do to the lengths of the paths that carry the gradient?"
)

PROTOCOL = (
    "Networks: `nfresnet18`, `nfresnet50` and `nfresnet101`, laid out so that the counts of the paper come out. "
    "Kinds: `:batchnorm`; `:plain` with weights by He et al. (fan-in), by Brock et al. (gain 2 / (1 - 1/pi)), and by "
    "Brock et al. with convolutions that are standardised at every step; `:idshort`, `:learnscalar` and `:convshort` "
    "with weights by He et al. Signals: the first 64 test images of CIFAR-10 at 32x32 as one batch, batch norms in "
    "train mode, 3 initialisations. Lengths of paths at initialisation: the first 16 test images as one batch, batch "
    "norms in train mode, exact sums over all paths of a length, 3 initialisations. Trainings: SGD, learning rate "
    "0.01, momentum 0.9, batches of 128, cosine schedule, 3 seeds, as in the paper; weight decay 1e-4, which is the "
    "default of `pathlens train`. At `--scale cpu`: `narrow18`, which has a quarter of the channels of `nfresnet18`; "
    "10,000 training images at 16x16 (the middle of 18x18), a tenth of them held out, 12 epochs, crops and mirror "
    "images. At `--scale paper`: the networks themselves, all images, 200 epochs, crops, mirror images and "
    "RandAugment. Lengths of paths in training: the first 64 test images as one batch, batch norms in train mode, at "
    "epoch 0 and every third epoch (at `--scale paper` five initialisations, and every 40th epoch)."
)

SECTIONS = {
    "costs": (
        "The paper counts a FLOP for each addition and each multiplication: its numbers are multiply-adds in units of "
        "1e9, rounded to two places, times two. Batch norm has a convolution in every shortcut, as ConvShort has; "
        "IdShort, LearnScalar (but for its numbers) and plain networks have one where the shape changes."
    ),
    "signals": (
        "With weights by He et al. a branch keeps the second moment, so that a plain network doubles it in every "
        "block, and a sum scaled by 1/sqrt(2) keeps it. Brock et al. choose the gain so that a branch keeps the "
        "*variance* if its weights have mean zero in every output channel. Without that, the mean that a ReLU leaves "
        "goes through the branch as well: a convolution multiplies the second moment by 1 / (1 - 1/pi) = 1.47, a "
        "branch of two by 2.15 and one of three by 3.16, so that a block multiplies it by 3.15 or 4.16."
    ),
    "trainings": (
        "At the scale of a CPU the networks are narrower, see fewer and smaller images, and train for few epochs: "
        "errors are far from those of the paper, and what is compared is who trains at all. A run that diverged ended "
        "because its loss was NaN or infinite."
    ),
    "start": (
        "Backwards through a block the squared norm of the gradient grows by r = c^2 (a + b): c scales the sum, and a "
        "and b are what shortcut and branch do to it. If paths are uncorrelated, the mean length of a path, with "
        "squared norms as weights, is the sum over blocks of b / (a + b) = 1 - c^2 a / r. With an identity, or with a "
        "convolution by He et al. behind no ReLU, a is 1. So the growth rate alone does not say how long paths are: r "
        "/ c^2 does."
    ),
    "moving": (
        "The same measure as the network trains. Where shortcuts are the identity times c, the factor stays what it "
        "was, and branches may grow or shrink; where they are convolutions, they are trained as well."
    ),
}

DISCUSSION = (
    "Initialisation is measured at the sizes of the paper, training is not (at `--scale cpu`). Three seeds give wide "
    "intervals: a row that cannot tell is no evidence for either side. The growth rate is fitted inside stages. That "
    "a network with large activations trains all the same at a small learning rate, or that one in bounds does not, "
    "is no contradiction: signals at initialisation say where training starts. Mean lengths weight a length by the "
    "squared norm of the sum over its paths; the table `profiles` also has the mean by projection on the gradient, "
    "which counts cancellation between lengths."
)
