"""Sets of images made up, as TFDS lays a prepared one out."""

import io
import json
import pathlib
from collections.abc import Mapping, Sequence

from array_record.python import array_record_module
from PIL import Image
from tensorflow_datasets.proto import tf_example_pb2


def write(
    directory: pathlib.Path,
    name: str,
    channels: int,
    splits: Mapping[str, Sequence[Image.Image]],
    classes: Sequence[str],
) -> None:
    """The set `name` below `directory`: keys `picture` and `kind`, PNGs of any size.

    Picture i of a split is of class i, modulo the number of classes.
    """
    home = directory / name / '1.0.0'
    home.mkdir(parents=True)
    feature = 'tensorflow_datasets.core.features'
    features = {
        'picture': {
            'pythonClassName': f'{feature}.image_feature.Image',
            'image': {'dtype': 'uint8', 'shape': {'dimensions': ['-1', '-1', str(channels)]}},
        },
        'kind': {
            'pythonClassName': f'{feature}.class_label_feature.ClassLabel',
            'classLabel': {'numClasses': str(len(classes))},
        },
    }
    layout = {
        'pythonClassName': f'{feature}.features_dict.FeaturesDict',
        'featuresDict': {'features': features},
    }
    (home / 'features.json').write_text(json.dumps(layout))
    (home / 'kind.labels.txt').write_text(''.join(f'{each}\n' for each in classes))
    rows = []
    for split, pictures in splits.items():
        file = home / f'{name}-{split}.array_record-00000-of-00001'
        writer = array_record_module.ArrayRecordWriter(str(file), 'group_size:1')
        for i, picture in enumerate(pictures):
            png = io.BytesIO()
            picture.save(png, 'PNG')
            example = tf_example_pb2.Example()
            example.features.feature['picture'].bytes_list.value.append(png.getvalue())
            example.features.feature['kind'].int64_list.value.append(i % len(classes))
            writer.write(example.SerializeToString())
        writer.close()
        rows.append(
            {
                'name': split,
                'shardLengths': [str(len(pictures))],
                'numBytes': '1',
                'filepathTemplate': '{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}',
            }
        )
    keys = {'tuple': {'items': [{'featureKey': key} for key in features]}}
    about = {'name': name, 'version': '1.0.0', 'fileFormat': 'array_record', 'splits': rows}
    (home / 'dataset_info.json').write_text(json.dumps({**about, 'supervisedKeys': keys}))
