"""Data sets as tensors: found or downloaded, read whole or not at all, split, normalised, batched.

:mod:`~noprop.data.arrays` says what a data set is, and :mod:`~noprop.data.batches` what training
does with one. :mod:`~noprop.data.formats`, :mod:`~noprop.data.numpy_files`,
:mod:`~noprop.data.table_files`, :mod:`~noprop.data.images` and :mod:`~noprop.data.folders` turn
files into tensors, and :mod:`~noprop.data.labels` turns labels into 0..m-1. The catalogue is
:mod:`~noprop.data.sources`; :mod:`~noprop.data.download` and :mod:`~noprop.data.loading` lead from
a name to a data set, :mod:`~noprop.data.hub_datasets` from a name of the Hugging Face Hub.
:mod:`~noprop.data.features` puts the features of a frozen network in place of images, and
:mod:`~noprop.data.inputs` reads what is predicted.
"""

from noprop.data.arrays import (
    Dataset,
    Examples,
    Splits,
    hold_out,
    stratified,
    stratified_indices,
    stratified_split,
)
from noprop.data.batches import Normalization, augment, balanced_weights, batch_indices
from noprop.data.given import GIVEN, as_pixels, dataset_of
from noprop.data.inputs import read_inputs
from noprop.data.loading import (
    FileStatus,
    SourceStatus,
    absolute_name,
    inspect_sources,
    load_dataset,
    search_path,
)
from noprop.data.sources import SOURCES

__all__ = [
    "GIVEN",
    "SOURCES",
    "Dataset",
    "Examples",
    "FileStatus",
    "Normalization",
    "SourceStatus",
    "Splits",
    "as_pixels",
    "augment",
    "balanced_weights",
    "batch_indices",
    "dataset_of",
    "hold_out",
    "inspect_sources",
    "absolute_name",
    "load_dataset",
    "read_inputs",
    "search_path",
    "stratified",
    "stratified_indices",
    "stratified_split",
]
