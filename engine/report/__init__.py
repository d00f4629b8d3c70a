"""Pictures and the report page of a run; takes arrays, imports no torch.

Every picture is a function that returns a matplotlib Figure, such as `gallery_figure`, in the colours of its `theme`:
`LIGHT` or `DARK`. The data loaded by `simclr_engine.evaluation.records` fit their arguments.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..package import lazy_names

if TYPE_CHECKING:
    from .feature_figures import collapse_figure as collapse_figure
    from .feature_figures import embedding_figure as embedding_figure
    from .feature_figures import neighbours_figure as neighbours_figure
    from .feature_figures import principal_components as principal_components
    from .feature_figures import spectrum as spectrum
    from .feature_figures import tsne as tsne
    from .page import write_report as write_report
    from .pretraining_figures import augmentation_sheet as augmentation_sheet
    from .pretraining_figures import contrast_curve as contrast_curve
    from .pretraining_figures import feature_curve as feature_curve
    from .pretraining_figures import knn_curve as knn_curve
    from .pretraining_figures import loss_curve as loss_curve
    from .pretraining_figures import lr_curve as lr_curve
    from .result_figures import accuracy_bars as accuracy_bars
    from .result_figures import confusion_figure as confusion_figure
    from .result_figures import gallery_figure as gallery_figure
    from .result_figures import label_efficiency_figure as label_efficiency_figure
    from .result_figures import per_class_figure as per_class_figure
    from .result_figures import pick as pick
    from .result_figures import reliability_figure as reliability_figure
    from .result_figures import training_figure as training_figure
    from .style import DARK as DARK
    from .style import LIGHT as LIGHT
    from .style import Theme as Theme

MODULES = {
    "feature_figures": "collapse_figure embedding_figure neighbours_figure principal_components spectrum tsne",
    "page": "write_report",
    "pretraining_figures": "augmentation_sheet contrast_curve feature_curve knn_curve loss_curve lr_curve",
    "result_figures": "accuracy_bars confusion_figure gallery_figure label_efficiency_figure per_class_figure pick "
    "reliability_figure training_figure",
    "style": "DARK LIGHT Theme",
}
PLACES = {name: module for module, names in MODULES.items() for name in names.split()}
__all__ = sorted(PLACES)


# Loads matplotlib with the first picture, not with the package.
__getattr__, __dir__ = lazy_names(__name__, {name: f".{module}" for name, module in PLACES.items()})
