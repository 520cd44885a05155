# What this package uses of ml_collections: the types of fields are checked by the schema.
from ml_collections.config_dict import ConfigDict as ConfigDict
