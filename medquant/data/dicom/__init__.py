"""DICOM: series of CT and MR slices read and written with every slice checked, and masks as segmentation objects.

No message, value or representation made here holds anything of a patient: no header text, no identifier, no date, and
a file's name only where it is a running number.
"""

from medquant.data.dicom.segmentation import read_segmentation, write_segmentation
from medquant.data.dicom.series import read_dicom_files, read_dicom_series
from medquant.data.dicom.writer import write_dicom_series

__all__ = ["read_dicom_files", "read_dicom_series", "read_segmentation", "write_dicom_series", "write_segmentation"]
