"""What SAP-DETR adds to the general parts (Liu et al., "SAP-DETR", CVPR 2023)."""

import detrkit.sap.geometry
import detrkit.sap.inner
import detrkit.sap.queries
import detrkit.sap.terms  # noqa: F401
