from .devices import as_dtype as as_dtype
from .devices import choose_device as choose_device
from .files import locked as locked
from .files import replacing as replacing
from .machine import describe_machine as describe_machine
from .object_store import ObjectPath as ObjectPath
from .threads import map_ahead as map_ahead
from .threads import read_ahead as read_ahead
