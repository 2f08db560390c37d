@0xc3a1f0b7d2e94856;

interface Bench {
  echo @0 (payload :Data) -> (payload :Data);
  upload @1 (payload :Data) -> (sum :Data);
  download @2 () -> (payload :Data);
}
