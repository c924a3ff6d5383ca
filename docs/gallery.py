"""The examples of ``docs/gallery.md``, in order; ``docs/make_gallery.py`` runs them and shows each beside its picture.

Each part begins with ``# %%`` and its title, and goes on with a few words and the code, so that editors open this file
as a notebook. Pictures go into the folder ``gallery``.
"""

# %% What all of them begin with
# The network that comes with the package, 54 pre-activation blocks trained on scikit-learn's digits, and some of its
# test images.

import torch

import pathlens
from pathlens import figures, training

network = pathlens.load_model().model
view = pathlens.find_blocks(network, torch.zeros(2, 1, 8, 8))
digits = pathlens.open_data("digits", limit=120)

# %% The blocks of a network
# Stages by colour, shortcuts as arcs, the kinds of shortcuts that are not the identity, and what each block costs.

figure = figures.structure(view.rows(), title="digits54")
figures.save(figure, "gallery", "structure")

# %% Each block deleted in turn
# Veit, Wilber, Belongie 2016, figure 3: the intact network is the dashed line, and stages are shaded.

table = pathlens.delete_blocks(view, digits)
figure = figures.deletion(table)
figures.save(figure, "gallery", "deletion")

# %% Many blocks deleted
# Their figure 5a: random sets of blocks. Faint points are the sets, the line is their mean.

table = pathlens.delete_blocks(view, digits, count=range(1, 21, 2), samples=6)
figure = figures.deletion(table)
figures.save(figure, "gallery", "many-deletions")

# %% Shortcuts deleted
# The control: branches are kept and shortcuts taken away.

table = pathlens.delete_skips(view, digits)
figure = figures.skips(table)
figures.save(figure, "gallery", "skips")

# %% Blocks exchanged
# Their figure 5b: the further the order is from the trained one, by Kendall's tau, the larger the error.

table = pathlens.reorder_blocks(view, digits, swaps=range(1, 21), samples=4)
figure = figures.reordering(table)
figures.save(figure, "gallery", "reordering")

# %% Gradients by path length
# Their figure 6: how many paths have a length, what comes through one of them, and what through all of them together.
# The effective range is shaded.

table = pathlens.path_gradients(view, pathlens.open_data("digits", limit=16), max_samples=16)
effective = table.provenance["effective"]["exact"]
figure = figures.path_gradients(table, effective=(effective["first"], effective["last"]))
figures.save(figure, "gallery", "path-gradients")

# %% Where the gradient lives
# The norm of the gradient at each place of the network, by the length of the paths that brought it there.

table = pathlens.lattice(view, pathlens.open_data("digits", limit=8))
figure = figures.lattice(table)
figures.save(figure, "gallery", "lattice")

# %% The network as a graph
# Any network has this view. Here a torchvision network with its weights drawn at random; only its shapes matter.

resnet18 = pathlens.load_model("torchvision:resnet18", "random").model
graph = pathlens.unravel(resnet18, torch.zeros(2, 3, 64, 64), kind="dag")
figure = figures.unraveled(graph)
figures.save(figure, "gallery", "unraveled-dag")

# %% The unraveled network
# Their figure 1b, for the first four blocks: every path through them is a path of the picture.

graph = pathlens.unravel(view, kind="tree", blocks=(0, 3))
figure = figures.unraveled(graph)
figures.save(figure, "gallery", "unraveled-tree")

# %% The lattice of paths
# All paths of the whole network on one page: colours say how many go through a node.

graph = pathlens.unravel(view, kind="lattice")
figure = figures.unraveled(graph)
figures.save(figure, "gallery", "unraveled-lattice")

# %% Training
# Random sub-networks of 5 of 9 blocks, drawn anew for each batch, as in their section 5.3. The whole network is what is
# validated.

images, watched = training.hold_out(pathlens.open_data("digits", split="train"), 200)
fresh = pathlens.load_model("preresnet20", "random", in_channels=1).model
recipe = training.recipe_for("digits", epochs=15)
rule = training.BlocksPerBatch(5)
trained = training.train(fresh, images, validation=watched, recipe=recipe, rule=rule, rescale="train")
figure = figures.training(trained.history)
figures.save(figure, "gallery", "training")
