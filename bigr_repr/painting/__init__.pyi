from .call import Painted as Painted
from .pasting import Pasting as Pasting
from .photos import edit_photo as edit_photo
from .photos import enrich_photo as enrich_photo
from .photos import inpaint_photo as inpaint_photo
from .photos import outpaint_photo as outpaint_photo
from .recorded import recorded_options as recorded_options
from .series import generate_files as generate_files
