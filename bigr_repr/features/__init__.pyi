from .extract import encode_codes as encode_codes
from .extract import extract_features as extract_features
from .extractor import FeatureExtractor as FeatureExtractor
from .extractor import Features as Features
from .tokens import TokenViews as TokenViews
from .tokens import token_pca as token_pca
from .tokens import token_views as token_views
