"""Models of users' kinds and an exported one, as fixtures."""

from exported_models import exported as exported
from exported_models import images as images
from exported_models import models as models
from exported_models import residual as residual
from program_files import entries as entries
from program_files import marker as marker
