"""The columns of this study's tables."""

from __future__ import annotations

from studies.depth_in_training.trends import GAINS

_RUN = (
    ("run", "", "name of the training run"),
    ("seed", "", "of the run"),
    ("weight_decay", "", "of the run"),
    ("epoch", "", "epochs done; 0 is the initialisation"),
)
_WHAT = (
    ("mode", "", "train: statistics of the batch, differentiated through; eval: running statistics"),
    ("contribution", "", "sampled: number times mean path norm (the paper's); signed: times rms; exact: of the sum"),
)

RANGES = (
    *_RUN,
    *_WHAT,
    ("blocks", "", "residual blocks"),
    ("first", "blocks", "shortest effective length: the shortest interval that holds 95 % of the contribution"),
    ("last", "blocks", "longest effective length"),
    ("centre", "blocks", "middle of the two"),
    ("mean_length", "blocks", "mean length, weighted by contribution"),
    ("share_of_paths", "fraction", "what the effective range holds of all paths"),
    ("gradient_norm", "loss per unit of input", "norm of the whole gradient at the input, mean over examples"),
)

CURVES = (
    ("weight_decay", "", "of the runs"),
    ("epoch", "", "epochs done"),
    _WHAT[1],
    ("length", "blocks", "number of branches that a path takes"),
    ("share", "fraction", "of the contribution of all lengths, batch statistics, mean over seeds"),
)

ERRORS = (
    ("weight_decay", "", "of the runs"),
    ("epoch", "", "epochs done"),
    ("seeds", "", "runs"),
    ("validation_error", "fraction", "of the whole network on held-out images, mean over seeds"),
)

BY_EPOCH = (
    ("weight_decay", "", "of the runs"),
    *_WHAT,
    ("epoch", "", "epochs done; 0 is the initialisation"),
    ("seeds", "", "runs"),
    ("blocks", "", "residual blocks"),
    ("first", "blocks", "shortest effective length, mean over seeds"),
    ("last", "blocks", "longest effective length, mean over seeds"),
    ("centre", "blocks", "middle of the effective range, mean over seeds"),
    ("centre_low", "blocks", "lower end of Student's 95 % interval of it over seeds"),
    ("centre_high", "blocks", "upper end"),
    ("mean_length", "blocks", "mean length weighted by contribution, mean over seeds"),
    ("mean_length_low", "blocks", "lower end of Student's 95 % interval of it over seeds"),
    ("mean_length_high", "blocks", "upper end"),
    ("validation_error", "fraction", "of the whole network on held-out images, mean over seeds"),
)

TRENDS = (
    ("weight_decay", "", "of the runs"),
    *_WHAT,
    ("since", "", "first epoch counted; 0 is the initialisation"),
    ("seeds", "", "runs"),
    ("rho", "", "Spearman's rank correlation of epoch and mean length within a run, mean over seeds"),
    ("rho_low", "", "lower end of Student's 95 % interval of it"),
    ("rho_high", "", "upper end"),
    ("rho_p", "", "two-sided one-sample t test of it against 0; empty where all seeds have the same"),
    ("rising", "", "seeds with a positive correlation"),
    ("sign_p", "", "two-sided sign test of that; at least 2 to the power of 1 - seeds"),
    ("change", "blocks", "mean length at the last epoch minus that at the first counted, mean over seeds"),
    ("change_low", "blocks", "lower end of Student's 95 % interval of it"),
    ("change_high", "blocks", "upper end"),
    ("change_p", "", "two-sided one-sample t test of it against 0"),
    ("change_p_holm", "", "the same after Holm's correction over contributions and first epochs"),
    ("part", "fraction", "of the change since initialisation, means over seeds"),
)

_MEANINGS = {
    "gamma": "mean absolute scale of the batch norms in branches",
    "response_ratio": "standard deviation of the branch over that of the shortcut, mean over blocks",
    "gradient_ratio": "lambda: norm of the gradient through the branch over that through the shortcut, mean of blocks",
    "predicted_length": "sum over blocks of lambda / (1 + lambda): mean length if gradients did not turn nor cancel",
}

GAINS_COLUMNS = (*_RUN, *((name, "", _MEANINGS[name]) for name in GAINS))

GAINS_BY_EPOCH = (
    ("weight_decay", "", "of the runs"),
    ("epoch", "", "epochs done; 0 is the initialisation"),
    ("seeds", "", "runs"),
    *(
        column
        for name in GAINS
        for column in (
            (name, "", f"{_MEANINGS[name]}; mean over seeds"),
            (f"{name}_low", "", "lower end of Student's 95 % interval of it over seeds"),
            (f"{name}_high", "", "upper end"),
        )
    ),
)

MECHANISM = (
    ("weight_decay", "", "of the runs"),
    _WHAT[1],
    ("scale", "", "which of the scales"),
    ("since", "", "first epoch counted"),
    ("moves", "", "in each run: from one kept epoch to the next"),
    ("seeds", "", "runs"),
    ("rho", "", "Spearman's rank correlation of their changes from one kept epoch to the next in a run, mean of seeds"),
    ("rho_low", "", "lower end of Student's 95 % interval of it over seeds"),
    ("rho_high", "", "upper end"),
    ("rho_p", "", "two-sided one-sample t test of it against 0; empty where all seeds have the same"),
    ("rho_p_holm", "", "the same after Holm's correction over all rows"),
    ("measured_over_predicted", "", "of predicted_length: mean length over it, mean over checkpoints and seeds"),
)
