"""What a search shows: pictures, a page, a montage, decoded codes."""
