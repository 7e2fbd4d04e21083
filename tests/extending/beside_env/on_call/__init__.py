"""Who is on call. An app that extends Docora."""
