"""The networks that the study trains: those of Civitelli et al. 2021, narrower.

``pathlens train --model studies/civitelli2021/nets.py:narrow18_idshort``. ``narrow18`` has a quarter of the channels of
``nfresnet18``; ``tiny18`` is for tests, on 8x8 grey digits.
"""

from __future__ import annotations

from functools import partial

from pathlens.models.nfresnet_cifar import NFResNet, nfresnet

_narrow18 = partial(nfresnet, 18, widths=(16, 32, 64, 128))
_tiny18 = partial(NFResNet, False, (1, 1, 2), in_channels=1, widths=(4, 4, 8))

narrow18_batchnorm = partial(_narrow18, "batchnorm")
narrow18_plain = partial(_narrow18, "plain")
narrow18_idshort = partial(_narrow18, "idshort")
narrow18_learnscalar = partial(_narrow18, "learnscalar")
narrow18_convshort = partial(_narrow18, "convshort")

tiny18_batchnorm = partial(_tiny18, "batchnorm")
tiny18_plain = partial(_tiny18, "plain")
tiny18_idshort = partial(_tiny18, "idshort")
tiny18_learnscalar = partial(_tiny18, "learnscalar")
tiny18_convshort = partial(_tiny18, "convshort")
