"""Studies of the field's claims, and benchmarks; they use the public interface of pathlens, as anybody would."""
