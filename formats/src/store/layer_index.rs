//! Layer indexes beside the blobs: `index/<alg>/<hex>`, made once, rebuilt whenever missing or unreadable.
