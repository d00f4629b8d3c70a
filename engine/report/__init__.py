"""Pictures and the report page of a run; takes arrays, imports no torch.

Every picture is a function that returns a matplotlib Figure, such as `gallery_figure`; the data loaded by
`simclr_engine.evaluation.records` fit their arguments.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy import lazy_names

if TYPE_CHECKING:
    from .augmentation import augmentation_sheet as augmentation_sheet
    from .build import write_report as write_report
    from .calibration import reliability_figure as reliability_figure
    from .collapse import collapse_figure as collapse_figure
    from .collapse import spectrum as spectrum
    from .confusion import confusion_figure as confusion_figure
    from .confusion import per_class_figure as per_class_figure
    from .curves import contrast_curve as contrast_curve
    from .curves import feature_curve as feature_curve
    from .curves import knn_curve as knn_curve
    from .curves import loss_curve as loss_curve
    from .curves import lr_curve as lr_curve
    from .embedding import embedding_figure as embedding_figure
    from .embedding import principal_components as principal_components
    from .embedding import tsne as tsne
    from .gallery import gallery_figure as gallery_figure
    from .gallery import pick as pick
    from .learning import training_figure as training_figure
    from .methods import accuracy_bars as accuracy_bars
    from .methods import label_efficiency_figure as label_efficiency_figure
    from .neighbours import neighbours_figure as neighbours_figure
    from .style import DARK as DARK
    from .style import LIGHT as LIGHT
    from .style import Theme as Theme

MODULES = {
    "augmentation": ("augmentation_sheet",),
    "build": ("write_report",),
    "calibration": ("reliability_figure",),
    "collapse": ("collapse_figure", "spectrum"),
    "confusion": ("confusion_figure", "per_class_figure"),
    "curves": ("contrast_curve", "feature_curve", "knn_curve", "loss_curve", "lr_curve"),
    "embedding": ("embedding_figure", "principal_components", "tsne"),
    "gallery": ("gallery_figure", "pick"),
    "learning": ("training_figure",),
    "methods": ("accuracy_bars", "label_efficiency_figure"),
    "neighbours": ("neighbours_figure",),
    "style": ("DARK", "LIGHT", "Theme"),
}
PLACES = {name: module for module, names in MODULES.items() for name in names}
__all__ = sorted(PLACES)


# Loads matplotlib with the first picture, not with the package.
__getattr__, __dir__ = lazy_names(__name__, {name: f".{module}" for name, module in PLACES.items()})
