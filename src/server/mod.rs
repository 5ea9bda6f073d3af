//! The program around the library.
