from .api import create_app as create_app
from .run import run_server as run_server
from .service import Service as Service
from .settings import Access as Access
from .settings import Limits as Limits
from .settings import read_token as read_token
