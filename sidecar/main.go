// Command postamt is the sidecar: every role of it is a subcommand.
package main

func main() {}
