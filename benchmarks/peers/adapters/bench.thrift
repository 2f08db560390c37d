service Bench {
  binary echo(1: binary payload)
  binary upload(1: binary payload)
  binary download()
}
